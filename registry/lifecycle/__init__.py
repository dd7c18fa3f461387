"""What happens to a published release: verification, signatures, promotion."""
