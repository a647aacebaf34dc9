"""Arguments of a pipeline that belong to the command, not to a request."""

RESERVED = {
    "num_inference_steps": "use --num-inference-steps",
    "generator": "use --seed",
    "output_type": "leave it out",
    "num_images_per_prompt": "use --num-images",
    "num_videos_per_prompt": "leave it out",
    "num_waveforms_per_prompt": "leave it out",
    "return_dict": "leave it out",
}
