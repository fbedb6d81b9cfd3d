"""What devices say: checked (`statements`), applied a transaction per batch (`apply`), acknowledged (`worker`)."""
