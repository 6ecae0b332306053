"""S3 as a tier."""
