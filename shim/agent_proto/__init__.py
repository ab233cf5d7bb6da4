"""The protocol between shim and guest agent (agent.proto) and its client."""
