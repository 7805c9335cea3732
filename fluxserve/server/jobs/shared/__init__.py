"""The store's other home: object storage, or a folder, that several servers have in common."""
