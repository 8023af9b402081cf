"""JSON-RPC 2.0 over unix sockets: server and client."""
