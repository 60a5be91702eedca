"""HTTP: from bytes on a connection to a change for the Writer, and back to an answer."""
