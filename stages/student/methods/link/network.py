"""The LINK network (ICLR 2026): instances and pairs of an image attend to a frozen VLM's map.

In a row: unary queries pooled from the map, :mod:`geometric encoder <.geometric_encoder>`, pair queries and
:mod:`linking decoder <.linking_decoder>`, :mod:`text classifier <.classifier>`. What the paper leaves open follows PViC
(Zhang et al. 2023), except: no attention weight drops out; encodings are as wide as the network is; grid positions
are the cells' centres; the classifier has one bias.

Shape legend: B images, I instances, P pairs, C channels of the h x w map, D width, E pair width, Le and Ld layers of
encoder and decoder, H interactions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.methods.link.classifier import InteractionClassifier
from hoi_distill.stages.student.methods.link.geometric_encoder import GeometricEncoder, UnaryQuery
from hoi_distill.stages.student.methods.link.linking_decoder import LinkingDecoder, PairQuery
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.pairs.layers.attention import Padding
from hoi_distill.stages.student.pairs.layers.box_encoding import box_encoding, unit_boxes
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.pairs.terms import PairOutput
from hoi_distill.storage.errors import UserError


class Link(nn.Module):
    """See the module's docstring.

    Args:
        verb: int64 ``[H]``, the verb of each interaction.
        text: float ``[H, T]`` text embeddings of the interactions' prompts; None: random rows (of width E where the shape
            names no ``text_width``), for a student without text or one whose checkpoint is yet to be loaded.

    Raises:
        UserError: the text is not as wide as the shape says.
    """

    def __init__(self, shape: LinkShape, verb: Tensor, text: Tensor | None = None) -> None:
        super().__init__()
        config = shape.network
        if text is None:
            text = torch.randn(len(verb), shape.text_width or config.pair_width)
        elif tuple(text.shape) != (len(verb), shape.text_width):
            raise UserError(
                f"text embeddings are {list(text.shape)}, the network wants {[len(verb), shape.text_width]}: "
                "use those of the text encoder and the vocabulary that it was made for"
            )
        self.shape = shape
        self.map_norm = nn.LayerNorm(shape.channels)
        self.map_dropout = nn.Dropout2d(config.feature_dropout)
        self.unary_query = UnaryQuery(shape.channels, config.width, config.roi_size)
        self.connector = nn.Sequential(
            nn.Linear(shape.channels, config.width), nn.ReLU(), nn.Linear(config.width, config.width)
        )
        self.encoder = GeometricEncoder(config)
        self.pair_query = PairQuery(config)
        self.decoder = LinkingDecoder(config, shape.channels)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.decoder.start()
        self.classifier = InteractionClassifier(
            config.pair_width, verb, text, config.classes,
            train_rows=config.train_rows, logit_scale=config.logit_scale, learn_scale=config.learn_scale,
        )  # fmt: skip

    @override
    def forward(self, regions: Regions) -> PairOutput:
        """``regions`` as :func:`hoi_distill.stages.student.pairs.instances.gather` lays them out: one image's rows
        after another's."""
        cells = self.map_norm(regions.maps.float().movedim(1, -1))
        maps = self.map_dropout(cells.movedim(-1, 1))
        latent = self.connector(maps.movedim(1, -1)).movedim(-1, 1)
        unit_I4 = unit_boxes(regions.boxes, regions.size[regions.image])
        appearance = self.unary_query(maps, regions)
        boxes = box_encoding(unit_I4, self.shape.network.width)
        unary = self.encoder(appearance, boxes, Padding(regions.image, regions.counts.instances))
        pairs = self.decoder(self.pair_query(unary[-1], regions), appearance, unit_I4, latent, maps, regions)
        return PairOutput(self.classifier(pairs), unary, pairs, latent)

    def with_classes(self, verb: Tensor, text: Tensor) -> Link:
        """A copy for other interactions (open vocabulary): int64 ``[H']`` verbs, float ``[H', T]`` text.

        It loses trained rows; with ``train_rows: false`` pairs were trained towards the text itself.
        """
        other = Link(self.shape, verb, text)
        kept = {name: value for name, value in self.state_dict().items() if name != "classifier.rows"}
        other.load_state_dict(kept, strict=False)
        return other.to(self.classifier.rows.device).train(self.training)
