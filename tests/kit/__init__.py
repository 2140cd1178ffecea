"""The kit for authors of backends: that it notices what is broken, and that our own stores pass it."""
