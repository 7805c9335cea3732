"""What a finished or running job is answered with: JSON, files, events."""
