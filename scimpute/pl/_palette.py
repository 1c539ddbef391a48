"""Colours of categories, the same in every version of scanpy."""

from __future__ import annotations

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""Colours that colour-blind people can tell apart, too (Okabe and Ito)."""
# For more categories, the colours that users know from scanpy's figures.
_TWENTY = str.split("""
    #1F77B4 #FF7F0E #279E68 #D62728 #AA40FC #8C564B #E377C2 #B5BD61 #17BECF #AEC7E8 #FFBB78 #98DF8A #FF9896 #C5B0D5 #C49C94 #F7B6D2 #DBDB8D
    #9EDAE5 #AD494A #8C6D31
""")
_MANY = str.split("""
    #FFFF00 #1CE6FF #FF34FF #FF4A46 #008941 #006FA6 #A30059 #FFDBE5 #7A4900 #0000A6 #63FFAC #B79762 #004D43 #8FB0FF #997D87 #5A0007 #809693
    #6A3A4C #1B4400 #4FC601 #3B5DFF #4A3B53 #FF2F80 #61615A #BA0900 #6B7900 #00C2A0 #FFAA92 #FF90C9 #B903AA #D16100 #DDEFFF #000035 #7B4F4B
    #A1C299 #300018 #0AA6D8 #013349 #00846F #372101 #FFB500 #C2FFED #A079BF #CC0744 #C0B9B2 #C2FF99 #001E09 #00489C #6F0062 #0CBD66 #EEC3FF
    #456D75 #B77B68 #7A87A1 #788D66 #885578 #FAD09F #FF8A9A #D157A0 #BEC459 #456648 #0086ED #886F4C #34362D #B4A8BD #00A6AA #452C2C #636375
    #A3C8C9 #FF913F #938A81 #575329 #00FECF #B05B6F #8CD0FF #3B9700 #04F757 #C8A1A1 #1E6E00 #7900D7 #A77500 #6367A9 #A05837 #6B002C #772600
    #D790FF #9B9700 #549E79 #FFF69F #201625 #72418F #BC23FF #99ADC0 #3A2465 #922329 #5B4534 #FDE8DC #404E55 #0089A3 #CB7E98 #A4E804 #324E72
""")


def palette(n: int) -> list[str]:
    """Colours of ``n`` categories. If the palette is too short, colours repeat."""
    chosen_palette = next((colors for colors in (OKABE_ITO, _TWENTY, _MANY) if len(colors) >= n), _MANY)
    return [chosen_palette[i % len(chosen_palette)] for i in range(n)]
