"""What happens to an image on its way: hide, redraw, compare, judge; pure functions on tensors."""
