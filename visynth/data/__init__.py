"""Reading, splitting, sampling and mixing images. Import from the modules: this package loads nothing by itself."""
