"""The networks of model.py as players."""

from bigjax.projects.seqgan.players import Options, Players, half_squares


def make_players(family, c, options: Options, length: int) -> Players:
    """The networks of a config without conditions: sequences of `length` tokens from token 0."""
    generator, discriminator = family.Generator(c), family.Discriminator(c)
    return Players(
        options,
        length,
        start_id=0,
        end_id=-1,
        pad_id=0,
        context=lambda params, given, rng: (),
        begin=lambda batch: family.begin(c, batch),
        step=lambda params, context, state, tokens: generator.apply(
            {"params": params}, tokens, state, method="step"
        ),
        logits=lambda params, context, inputs, rng: generator.apply(
            {"params": params}, inputs, rng
        ),
        loss=lambda params, context, inputs, targets, weights, rng: generator.apply(
            {"params": params}, inputs, targets, weights, rng, method="loss"
        ),
        score=lambda params, given, tokens, mask, rng: discriminator.apply(
            {"params": params}, tokens, mask, rng
        ),
        penalty=lambda params: half_squares(family.last_layer(params)),
    )
