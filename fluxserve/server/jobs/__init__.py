"""What outlives one HTTP request: pictures behind URLs, keyed answers, jobs that wait for a retry."""
