"""Features, ranking metrics, learners and statistics. Import from the modules: this package loads nothing by itself."""
