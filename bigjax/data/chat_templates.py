"""The chat templates that data.chat_template can name. In Jinja, see data/_template_worker.py."""

# For every tokenizer: roles are words, and the tokenizer's eos ends an answer.
PLAIN = r"""
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- 'Assistant:' }}
        {%- generation %}
            {{- ' ' + m.content }}
            {%- for call in m.tool_calls or [] %}
                {{- '\nCall: ' + (call.function or call) | tojson }}
            {%- endfor %}
            {{- eos_token }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- m.role | capitalize + ': ' + m.content + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""

# For tokenizers with <|im_start|> and <|im_end|>.
CHATML = r"""
{%- if tools %}
    {{- '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}
            {{- m.content }}
            {%- for call in m.tool_calls or [] %}
                {{- '\n' if m.content or not loop.first }}
                {{- '<tool_call>' + (call.function or call) | tojson + '</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- m.content + '<|im_end|>' }}
    {%- endif %}
    {{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

BUILT_IN = {"plain": PLAIN, "chatml": CHATML}
NEEDS = {"chatml": ("<|im_start|>", "<|im_end|>")}  # special tokens of the tokenizer
