"""Evidence written down: HTML, Markdown, JUnit."""
