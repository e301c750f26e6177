"""The HTTP server: connections and request framing."""
