"""Which tests .ci/run repeats on the newest Python and releases: marked `newest` by conftest.py.

Two minutes of tests for everything that an upgrade may break: private APIs of packages, compiled
programs of each family and their numbers, meshes, hosts, checkpoints, foreign files, HLO text.
"""

NEWEST = """
unit/test_contracts.py
unit/test_hosts.py
unit/test_plan.py
unit/test_plan_compilers.py
unit/test_step.py
unit/test_checkpoint.py
unit/test_sampling.py
unit/test_data_loader.py
unit/test_attention.py::test_kernels_equal_einsum_in_values_and_gradients
unit/test_gpt.py::test_cached_logits_equal_uncached_ones
unit/test_headline_model.py::test_decoder_steps_equal_the_full_pass
unit/test_seqgan.py::test_decoder_steps_equal_the_full_sequence
unit/test_interop.py::test_an_import_and_export_keeps_tensors_and_config
parity/test_gpt.py::test_logits_loss_and_gradients
parity/test_bert.py::test_logits_loss_and_gradients
parity/test_seqgan.py::test_logits_loss_and_gradients
parity/test_recurrent.py::test_outputs_states_and_gradients[lstm
parity/test_optim.py::test_schedule
multidevice/test_meshes.py::test_loss_and_parameters_after_ten_steps[(2, 2, 2)]
multidevice/test_meshes.py::test_parameters_are_cast_before_they_are_gathered_and_their_gradients_scattered
multidevice/test_bert_meshes.py::test_loss_and_parameters_after_ten_steps[(2, 2, 2)-]
multidevice/test_seqgan_meshes.py
e2e/test_hosts.py::test_resumed_and_stopped_on_two_and_resumed_on_one
e2e/test_resume.py::test_kill_and_run_again
""".split("\n")[1:-1]


def is_newest(nodeid: str) -> bool:
    """Whether an entry of NEWEST selects a test id: 'tests/unit/test_x.py::test_y[case]'."""
    name = nodeid.removeprefix("tests/")
    return any(
        name.startswith(entry)
        and ("[" in entry or name[len(entry) :].startswith(("::", "[")) or name == entry)
        for entry in NEWEST
    )
