"""Load the demo's adapter, splice the SAE in, and generate: original, spliced, adapted.

python examples/generate_through_sae.py saelora-demo "The state of our union"
"""

import sys

import saelora


def main(folder: str, prompt: str) -> dict[str, str]:
    loaded = saelora.load_model("smollm2-135m-instruct")
    sae = saelora.load_sae("smollm2-135m-instruct.layers.12.resid_post")
    token_mask = saelora.TokenPolicy().resolve(loaded.tokenizer)
    model = saelora.load_adapter(loaded.model, folder)
    ids = loaded.tokenizer(loaded.tokenizer.bos_token + prompt, return_tensors="pt")

    def generate() -> str:
        return loaded.tokenizer.decode(model.generate(**ids, max_new_tokens=30)[0], skip_special_tokens=True)

    with saelora.splice(model, {sae.hookpoint: sae.sae}, token_mask) as spliced:
        texts = {"adapted": generate()}
        with model.disable_adapter():
            texts["spliced"] = generate()
            with spliced.disabled():
                texts["original"] = generate()
    return texts


if __name__ == "__main__":
    for arm, text in main(sys.argv[1], sys.argv[2]).items():
        print(f"{arm:>9}: {text}")
