"""The nodes, one a file: a schema and one call. Imported inside a running host only, from `extension`."""
