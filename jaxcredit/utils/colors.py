"""Colors of plots, which readers with color blindness can distinguish."""

COLORS = ("#2456a6", "#d1495b", "#2e933c", "#edae49", "#7a4f9a", "#4a4e69")
