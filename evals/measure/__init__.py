"""Evidence about one model, from one running server."""
