"""The MQTT link, and HTTPS downloads that resume; protocol logic apart from sockets."""
