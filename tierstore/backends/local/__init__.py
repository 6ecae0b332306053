"""Files on a disk or a shared file system."""
