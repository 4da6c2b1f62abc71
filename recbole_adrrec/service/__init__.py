"""The HTTP service: questions, answers computed in batches, the application and its server."""
