"""SeqGAN in PyTorch, the other side of benchmarks/seqgan.py, which runs and times it.

SeqGAN: https://arxiv.org/abs/1609.05473, at the sizes of its experiment with an oracle: 5,000
tokens, sequences of 20, an LSTM of 32, a CNN of 12 kernel widths with a highway layer.

Eager PyTorch in the style of the public ports: all batches have 64 rows, the recurrence is a loop
over tokens, and the rollouts are a loop over 16 repeats and 19 prefixes, each of which runs its
prefix again and samples the rest. Faster forms are used where the code does not get longer: no
gradients and no dropout in sampling and scoring, no logits for the tokens of a prefix, Conv1d
(Conv2d is slower), and one evaluation of complete sequences, whose reward does not vary. As in the
paper, but unlike the authors' code, rollouts are sampled from the generator itself, not from a
slower copy, and gradients are not clipped.

Import it only in the process of that side, as it imports torch.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, LENGTH, START, BATCH = 5000, 20, 0, 64
WIDTH = 32  # of the generator's embedding and LSTM
CNN_WIDTH, DROPOUT, L2 = 64, 0.25, 0.2
FILTERS = {
    1: 100,
    2: 200,
    3: 200,
    4: 200,
    5: 200,
    6: 100,
    7: 100,
    8: 100,
    9: 100,
    10: 100,
    15: 160,
    20: 160,
}  # by width
SEQUENCES = 10_000  # sampled; as many are real
ROLLOUTS = 16
GENERATOR_RATE, DISCRIMINATOR_RATE = 1e-2, 1e-4


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, token: torch.Tensor, state: tuple | None) -> tuple:
        """The state (h, c), each [B, WIDTH], after one more token [B]. state None: zeros."""
        return self.cell(self.embed(token), state)

    @torch.no_grad()
    def sample(self, prefix: torch.Tensor) -> torch.Tensor:
        """Sampled sequences [B, LENGTH] that continue prefix [B, 0 to LENGTH]."""
        token, state, tokens = _start(prefix), None, []
        for t in range(LENGTH):
            state = self(token, state)
            if t < prefix.shape[1]:
                token = prefix[:, t]
            else:
                token = torch.multinomial(F.softmax(self.out(state[0]), dim=1), 1).squeeze(1)
            tokens.append(token)
        return torch.stack(tokens, dim=1)

    def nll(self, tokens: torch.Tensor) -> torch.Tensor:
        """-log p [B, LENGTH] of each token given those before it, in nats."""
        token, state, losses = _start(tokens), None, []
        for t in range(LENGTH):
            state = self(token, state)
            token = tokens[:, t]
            losses.append(F.cross_entropy(self.out(state[0]), token, reduction="none"))
        return torch.stack(losses, dim=1)


class Discriminator(nn.Module):
    """A CNN (Kim 2014, https://arxiv.org/abs/1408.5882) with a highway layer before its output."""

    def __init__(self) -> None:
        super().__init__()
        features = sum(FILTERS.values())
        self.embed = nn.Embedding(VOCABULARY, CNN_WIDTH)
        self.convs = nn.ModuleList(nn.Conv1d(CNN_WIDTH, n, width) for width, n in FILTERS.items())
        self.gate, self.transform = nn.Linear(features, features), nn.Linear(features, features)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(features, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, 2] of fake and real for tokens [B, LENGTH]."""
        x = self.embed(tokens).transpose(1, 2)
        # ReLU is monotonic: with the maximum over time first it has less work.
        x = torch.cat([F.relu(conv(x).amax(dim=2)) for conv in self.convs], dim=1)
        gate = torch.sigmoid(self.gate(x) - 2)  # initially almost closed, as in the authors' code
        x = gate * F.relu(self.transform(x)) + (1 - gate) * x
        return self.out(self.dropout(x))

    def loss(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy, and the L2 penalty of the output layer; labels [B]: 1 is real."""
        penalty = (self.out.weight.square().sum() + self.out.bias.square().sum()) / 2
        return F.cross_entropy(self(tokens), labels) + L2 * penalty


def rewards(
    generator: Generator, discriminator: Discriminator, tokens: torch.Tensor
) -> torch.Tensor:
    """The reward of each token, [B, LENGTH], from 0 to 1.

    It is the discriminator's probability of being real, averaged over rollouts from the prefix that
    ends with the token (equation 4 of the paper); for the last token that of the sequence itself.
    """
    discriminator.eval()
    with torch.no_grad():
        total = torch.zeros(tokens.shape)
        for _ in range(ROLLOUTS):
            for t in range(1, LENGTH):
                total[:, t - 1] += _real(discriminator, generator.sample(tokens[:, :t]))
        average = total / ROLLOUTS
        average[:, -1] = _real(discriminator, tokens)
    return average


def theirs() -> tuple[dict, Callable[[str], dict]]:
    """(the description of this side, repeat(task) -> losses).

    `sampling`: 10,000 sequences from the generator; no losses.
    `mle`: an epoch of maximum likelihood over 10,000 sequences; loss in nats per token.
    `discriminator`: an epoch over 20,000 sequences, half of them real; loss with its L2 penalty.
    `generator`: one adversarial update; loss per token, reward the mean of the batch.

    Losses of an epoch are means over its batches. The models are kept from task to task. Training
    sequences are random tokens: the speed does not depend on them. Unknown tasks raise KeyError.
    """
    torch.manual_seed(0)
    generator, discriminator = Generator(), Discriminator()
    pretrain, adversarial = (
        torch.optim.Adam(generator.parameters(), lr=GENERATOR_RATE) for _ in range(2)
    )  # with separate moments, as in the authors' code
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=DISCRIMINATOR_RATE)
    sequences = torch.randint(VOCABULARY, (2 * SEQUENCES, LENGTH))
    real = sequences[:SEQUENCES]
    labels = (torch.arange(2 * SEQUENCES) < SEQUENCES).long()

    def sampling() -> dict:
        sizes = [len(rows) for rows in torch.arange(SEQUENCES).split(BATCH)]
        tokens = torch.cat([generator.sample(_empty(n)) for n in sizes])
        assert tokens.shape == (SEQUENCES, LENGTH)
        return {}

    def mle() -> dict:
        return _epoch(pretrain, len(real), lambda rows: generator.nll(real[rows]).mean())

    def train_discriminator() -> dict:
        discriminator.train()
        return _epoch(
            discriminator_optimizer,
            len(sequences),
            lambda rows: discriminator.loss(sequences[rows], labels[rows]),
        )

    def reinforce() -> dict:
        tokens = generator.sample(_empty(BATCH))
        reward = rewards(generator, discriminator, tokens)
        loss = (generator.nll(tokens) * reward).mean()
        return {"loss": _update(adversarial, loss), "reward": reward.mean().item()}

    tasks = {
        "sampling": sampling,
        "mle": mle,
        "discriminator": train_discriminator,
        "generator": reinforce,
    }
    about = {
        "generator_parameters": _count(generator),
        "discriminator_parameters": _count(discriminator),
        "what": f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    }
    return about, lambda task: tasks[task]()


def _start(tokens: torch.Tensor) -> torch.Tensor:
    """The first input of the generator, [B]."""
    return tokens.new_full((len(tokens),), START)


def _empty(n: int) -> torch.Tensor:
    """n empty prefixes."""
    return torch.zeros(n, 0, dtype=torch.long)


def _real(discriminator: Discriminator, tokens: torch.Tensor) -> torch.Tensor:
    """The probability [B] that tokens [B, LENGTH] are real."""
    return F.softmax(discriminator(tokens), dim=1)[:, 1]


def _epoch(optimizer: torch.optim.Optimizer, n: int, loss: Callable) -> dict:
    """One update with loss(rows) per batch of n rows, in random order."""
    losses = [_update(optimizer, loss(rows)) for rows in torch.randperm(n).split(BATCH)]
    return {"loss": sum(losses) / len(losses)}


def _update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
