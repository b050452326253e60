"""Work that is independent along an axis, done in chunks along it: maps, streaming softmax, loss heads."""

from jaxremat.chunk.cross_entropy import softmax_cross_entropy as softmax_cross_entropy
from jaxremat.chunk.mapping import map_chunks as map_chunks
from jaxremat.chunk.rewrite import find as find
from jaxremat.chunk.rewrite import rewrite as rewrite
from jaxremat.chunk.rewriting.finding import Finding as Finding
from jaxremat.chunk.rewriting.finding import Findings as Findings
