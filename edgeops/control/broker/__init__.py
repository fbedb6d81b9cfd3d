"""The MQTT broker as a supervised child process: mosquitto with TLS and ACL, or the pip-installable one on loopback."""
