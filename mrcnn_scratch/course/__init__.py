"""The course around the notebooks: checks of what a student builds."""
