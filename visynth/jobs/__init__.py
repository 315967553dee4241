"""The jobs behind the commands: they connect the other rooms and hold no maths."""
