"""Networks and their maths, readable one file at a time. Import from the modules: this package loads nothing by
itself."""
