"""The eleven named colours."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (248, 220, 60),
    "green": (50, 160, 70),
    "blue": (45, 90, 210),
    "purple": (130, 55, 170),
    "pink": (250, 160, 195),
    "brown": (120, 75, 40),
    "black": (22, 22, 26),
    "white": (246, 246, 246),
    "gray": (135, 138, 142),
}
COLOUR_NAMES = tuple(COLOURS)
