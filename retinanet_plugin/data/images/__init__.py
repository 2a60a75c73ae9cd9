"""Image files: read, and looked at before they are needed."""
