"""The page on which a person decides about suspected labels and new photographs, as `fieldguide review` serves it."""
