"""Invented names from tables of syllables: thousands of each kind, no two alike."""
# ruff: noqa: E501, SIM905 - tables of words, a row a line

from __future__ import annotations

from pipeline.newswire.rng import Rng

_FIRST_A = "Al An Ar Bel Bren Cal Cor Dav Del Dor El Em Fen Gal Hal Hel Il Ith Jor Kal Kes Lar Len Lor Mar Mel Mir Nal Ner Ol Or Pel Ral Ren Sal Ser Tal Tam Tor Ul Val Ven Wil Yor Zan".split()
_FIRST_B = (
    "a ana ara ek el ela en ena ia ian ic ida ik il ila in ina ira is isa o on ora ric vin wen yn".split()
)
_LAST_A = "Ab Ad Bar Bas Ber Bor Bran Cad Cald Car Dak Dar Dov Dun Ed Fal Far Fol Gar Gil Gran Had Har Hol Jas Jen Kad Kar Kel Kov Lan Lin Lud Mad Mal Mon Nar Nev Nor Od Os Pad Par Per Quil Rad Rav Rem Rod Sab San Sel Sorn Tad Tas Tel Tov Ud Ur Vad Var Ves Vor Wad War Wes Yar Zad Zel".split()
_LAST_B = "a e i o u al an ar el en er il in ol om on or ul um un".split()
_LAST_C = "bert bury dane dell den der dovic dric fax field gard grave hart kin kov land len ley ling lock low lund man mark mont more nell ner nik quist rand ris rone rov sen ski son ston thal trand vall vane vic vold wald well wick".split()
_ROOT_A = "Ael Aster Bril Cael Corv Crest Dray Elm Ferr Glim Hesp Ingr Jun Kest Lum Meri Nim Ondr Orv Pell Quor Rill Sarn Silv Tarr Thorn Umbr Vant Vess Wren Xan Yev Zeph".split()
_ROOT_B = "ade adon aline amic ane anta ara aric elle entis era eric esse etta iant ica idian ion ira isco ithe olan omic ond ora oric oss una ura yne".split()
_TOWN_A = "Ald Ask Bram Brun Carn Dal Dun Eld Esk Fal Garn Grim Hask Holm Ister Kall Kirn Lang Lorn Mard Mern Nord Ober Ost Pend Quen Rask Rost Sand Skell Stav Tarn Thal Ulv Vald Varn Vind Wesk Yarl Zand".split()
_TOWN_B = "a e o en er ing is".split()
_TOWN_C = "berg bo borg brae by dale fjell ford gate ham haven holt mere mond mouth ness port sund stad ton vik wall wold".split()
_LAND_A = "Andar Borel Casp Dravon Elvar Feron Galdan Hestr Kalev Lorand Maren Norval Ostren Pavon Sarland Talor Vesper Zarin".split()
_PRODUCT_A = "Aero Alto Bolt Brisk Cinder Clarity Delta Echo Ember Fathom Flint Halo Harbor Indigo Jetty Kite Lantern Lattice Mono Nova Onyx Orbit Pebble Pilot Prism Quill Raft River Signal Sprint Tandem Tide Vector Willow".split()
_PRODUCT_B = "Air Arc Base Beam Desk Edge Field Flow Go Grid Hub Lens Line Link Loop Mesh Mini Note Path Plus Port Pro Run Sense Set Shift Span Tab View Wave".split()


class Names:
    """Gives names of each kind, never the same twice; its memory does not grow."""

    __slots__ = ("_given", "_orders", "_reserved")

    def __init__(self, seed: int) -> None:
        self._orders: dict[str, tuple[int, int]] = {}
        self._given: dict[str, int] = {}
        self._reserved: set[str] = set()
        rng = Rng(seed, "names")
        for kind in ("last", "root", "town", "land", "product"):
            self._orders[kind] = (rng.below(1 << 30), rng.below(1 << 30) * 2 + 1)
            self._given[kind] = 0

    def _next(self, kind: str, size: int) -> int:
        """A number below `size`: a walk that meets every number once before it repeats."""
        start, stride = self._orders[kind]
        while _gcd(stride, size) != 1:
            stride += 2
        at = self._given[kind]
        self._given[kind] = at + 1
        return (start + at * stride) % size

    def last(self) -> str:
        """A family name."""
        while True:
            at = self._next("last", len(_LAST_A) * len(_LAST_B) * len(_LAST_C))
            at, a = divmod(at, len(_LAST_A))
            c, b = divmod(at, len(_LAST_B))
            name = _LAST_A[a] + _LAST_B[b] + _LAST_C[c]
            if name not in self._reserved:
                return name

    def first(self, rng: Rng) -> str:
        """A given name; these may repeat."""
        return rng.pick(_FIRST_A) + rng.pick(_FIRST_B)

    def stranger(self, rng: Rng) -> tuple[str, str]:
        """Someone quoted in passing: a random name that holds no post. Family names of posts end otherwise."""
        return self.first(rng), rng.pick(_LAST_A) + rng.pick(_LAST_B) + rng.pick(
            ("th", "ck", "x", "sk", "by")
        )

    def root(self) -> str:
        """The distinctive word of a company or institute."""
        return self._unlike("root", (_ROOT_A, _ROOT_B))

    def town(self) -> str:
        """A town."""
        return self._unlike("town", (_TOWN_A, _TOWN_B, _TOWN_C))

    def land(self) -> str:
        """A country, ending in -ia."""
        return self._unlike("land", (_LAND_A,)) + "ia"

    def product(self) -> str:
        """A product: two words and, once those are spent, a number."""
        size = len(_PRODUCT_A) * len(_PRODUCT_B)
        turn = self._given["product"] // size
        a, b = divmod(self._next("product", size), len(_PRODUCT_B))
        return f"{_PRODUCT_A[a]} {_PRODUCT_B[b]}" + (f" {turn + 1}" if turn else "")

    def _unlike(self, kind: str, tables: tuple[list[str], ...]) -> str:
        size = 1
        for table in tables:
            size *= len(table)
        for _ in range(size):
            at = self._next(kind, size)
            parts = []
            for table in tables:
                at, index = divmod(at, len(table))
                parts.append(table[index])
            name = "".join(parts)
            outline = parts[0] + " " + parts[-1]  # two towns never differ by their middle alone
            if outline not in self._reserved and not any(
                name in other or other in name for other in self._reserved
            ):
                self._reserved |= {name, outline}
                return name
        raise AssertionError(f"no more names of kind {kind}")


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a
