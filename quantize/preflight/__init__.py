"""Problems that are found before a build starts."""
