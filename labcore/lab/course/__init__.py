"""The course around the lessons: outline, progress, report; guides and copies for instructors."""
