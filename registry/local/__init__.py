"""The local registry: one folder, an OCI image layout."""
