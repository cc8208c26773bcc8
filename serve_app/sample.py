"""A real face small enough to stand in the API's own documentation, so that its examples can be run as they are."""

from __future__ import annotations

from typing import Final

SAMPLE_FACE_URL: Final = (
    "data:image/webp;base64,"
    "UklGRvwCAABXRUJQVlA4IPACAAAQEQCdASpAAEAAPtFcpU0oJSOiKBgN+QAaCWMAxnRH0fF7Pq//C+DNcQ15vLQ0qy8f1F/0WC+8Xh8wGmlHFJQA"
    "GxWUhutxero/yqiPaTYpWV6bYex8VzzS1yUFAfIDPOH8pAcGqfGcNXctAwtnikIpTKC8XStucYcxmdDEork9Tv2WZaw0fWS+mlg6hw4/NbAAAP72"
    "ApZHMR7/3hGfNGZzdtGdEjSZDzNpV6tq3es1EdjBskjSEjyziuVF8c8jdWchwvOeaReHz0BJC1i3IeFIBp5MjTTgx15Oa2PHNF6lwW24Lfexi9dK"
    "j4MlLaI7zA2c1cHd9Jq7uUYekb9S5z0iM+7szYhcW6kqSjR/QHlt0gB7g+VaT+7G4nzanRVuG3kS2kmspQ9QUeX0okJLgBIKaHd1vHruSCfF7L+e"
    "Smwd184UZ4X2aBiXZR1NpNYt2ybH+eb5mMrcwX0I1AHXj/SIKFJN+rh2n3N3v+6iCKg3uuhNW5byIgWzJD8dXurZSGO1mZoIlKwdUVv3tQa+pbRX"
    "wBxeBKSYY+lDnA2ltPt+RLDMf1oZ+Z3loFGYwamLSGDeVEjMhwE/xiVVXY1m76NY8rxjnKt8zWeSEdDcYtCRVu6415UokD8sOkvUR5yYYaYgeCbG"
    "gMK6VpDBCcJm7fXfASs+jFaEc3zEsydKLN4rIW6LWiJeDgajFXdYzY4dEChsdccSeFGwO08vd2GnOUFCIkMi1R1N0mNjWzE6igqa08nLzlRUkF+x"
    "BtYa1uXjp0ctDmq7YHDKbG7oRwMRWzrKPSdFncx45KEiSXEP0+hhHB5oTZYM54NR/Z5/b452XhBNbKiDNEwEA2Z2e4X9NEaAd1LtRzhTmhFvOrjN"
    "15Bs3h9HdFAlA5g1rzO9H9ISSYkRqIqjpeMQn51TlNEJQa0etetQ3vb1Xyzv2W4hv1p56/t2sLtP8YZyQ2CIbLy+2oY1elKevcVO4Z6kbr0E2cLQ"
    "I1BfKNVwWXCjyheTymAAAA=="
)
"""Eileen Collins, 64×64 pixels, 772 bytes. From NASA (public domain): a crop of ``skimage.data.astronaut``."""
