"""The process that holds a model's native runtime: it loads, proves and serves one bundle."""
