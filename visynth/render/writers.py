"""Encode images and mark them as synthetic."""

from __future__ import annotations

from visynth.core.codec import Array, encode_png, encode_tiff

SOURCE_TYPES = {
    "trained": "trainedAlgorithmicMedia",
    "inpainted": "compositeWithTrainedAlgorithmicMedia",
    "composite": "compositeWithTrainedAlgorithmicMedia",
}
XMP = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"/>
</rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def xmp_packet(kind: str) -> bytes:
    """The IPTC mark that says how an image came about; ``kind`` is the generator's kind."""
    return XMP.format(kind=SOURCE_TYPES[kind]).encode()


def encode(image: Array, encoding: str, kind: str) -> bytes:
    """A marked image file: ``[H, W, C]`` uint8 or uint16 as PNG or TIFF."""
    return {"png": encode_png, "tiff": encode_tiff}[encoding](image, xmp_packet(kind))
