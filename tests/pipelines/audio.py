"""Sound and music."""

from typing import Any

import diffusers
from diffusers.pipelines.ace_step import AceStepConditionEncoder

from tests.pipelines.parts import PLAIN, TinyPipeline, assemble, mask, prompted, text, transformer
from tests.pipelines.words import Letters, Table

SECONDS = 4


def oobleck(sampling_rate: int) -> Any:
    """The smallest autoencoder of sound of its class: two samples become one latent."""
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=8,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=sampling_rate,
    )


def stable_audio() -> Any:
    """Four samples a second."""
    vae = oobleck(4)
    sampler = diffusers.EDMDPMSolverMultistepScheduler(prediction_type="v_prediction", sigma_data=1.0)
    projection = diffusers.StableAudioProjectionModel(
        text_encoder_dim=32, conditioning_dim=32, min_value=0, max_value=32
    )
    model = transformer("StableAudioDiTModel", global_states_input_dim=64)
    return assemble(
        "StableAudioPipeline", transformer=model, vae=vae, scheduler=sampler, projection_model=projection
    )


def stable_audio_3() -> Any:
    """Its sampler steps on [0, 1]."""
    vae = diffusers.AutoencoderSAME(
        audio_channels=2,
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        use_differential_attention=False,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    )
    embedder = diffusers.StableAudio3DurationEmbedder(output_dim=32, fourier_dim=16)
    model = transformer("StableAudio3DiTModel", global_cond_dim=32, local_add_cond_dim=5)
    sampler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return assemble(
        "StableAudio3Pipeline", transformer=model, vae=vae, scheduler=sampler, duration_embedder=embedder
    )


def ace_step() -> Any:
    """Texts and lyrics go through an encoder of their own."""
    condition = AceStepConditionEncoder(
        hidden_size=32,
        intermediate_size=32,
        text_hidden_dim=32,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
    )
    vae = oobleck(50)
    sampler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0)
    return assemble(
        "AceStepPipeline",
        transformer=transformer("AceStepTransformer1DModel"),
        vae=vae,
        scheduler=sampler,
        condition_encoder=condition,
        text_encoder=Table(),
        tokenizer=Letters(),
    )


def longcat_audio() -> Any:
    """Sound from texts."""
    vae = diffusers.LongCatAudioDiTVae(
        in_channels=1,
        channels=16,
        c_mults=[1, 2],
        strides=[2],
        latent_dim=8,
        encoder_latent_dim=16,
        downsampling_ratio=2,
        sample_rate=24000,
    )
    model = transformer("LongCatAudioDiTTransformer")
    return assemble(
        "LongCatAudioDiTPipeline",
        transformer=model,
        vae=vae,
        text_encoder=Table(),
        tokenizer=Letters(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )


AUDIO: dict[str, TinyPipeline] = {
    "StableAudioPipeline": TinyPipeline(
        stable_audio,
        prompted({"prompt_embeds": text, "attention_mask": lambda i: mask()}, audio_end_in_s=float(SECONDS)),
    ),
    "StableAudio3Pipeline": TinyPipeline(
        stable_audio_3,
        prompted(PLAIN, guided=True, guidance_scale=3.0, duration=float(SECONDS)),
    ),
    "AceStepPipeline": TinyPipeline(
        ace_step, lambda i: {"prompt": f"a song in {i}", "lyrics": f"la {i}", "audio_duration": 1.0}
    ),
    "LongCatAudioDiTPipeline": TinyPipeline(
        longcat_audio,
        lambda i: {"prompt": f"the sea at {i}", "audio_duration_s": 0.002, "guidance_scale": 3.0},
    ),
}
