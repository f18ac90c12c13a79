"""The networks of model.py as a GAN."""

from bigjax.projects.seqgan.gan import GAN, Options, half_sum_of_squares


def make_gan(family, c, options: Options, length: int) -> GAN:
    """The networks of a config without conditions: sequences of `length` tokens from token 0."""
    generator, discriminator = family.Generator(c), family.Discriminator(c)
    return GAN(
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
        penalty=lambda params: half_sum_of_squares(family.last_layer(params)),
    )
