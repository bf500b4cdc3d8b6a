"""What people look at: one HTML file that says what was flagged, why, and how sure that is."""
