"""What the commands do: rooms connected, no maths."""
