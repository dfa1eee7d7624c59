"""What the notebooks teach with: pictures, exercises, checks of a method."""
