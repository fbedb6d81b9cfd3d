"""Assembles bundles into signed releases and keeps their blobs; bundles as directories and files."""
