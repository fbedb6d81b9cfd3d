"""The report of a bundle, a compile or a release: one page that a data scientist can read, made from evidence alone."""
