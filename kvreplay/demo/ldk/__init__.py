"""Real LDK nodes on kvreplay's stores: LDK's own build for Node.js, over two pipes."""
