"""Chat templates of our own in the style of published ones, and conversations for them."""

import re

# {name: (family of published_tokenizers, template)}; each has marks around an assistant's texts.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\\n' }}{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system\\n\\nToday: 26 Jul 2024\\n\\n' + ns.system + '<|eot_id|>' }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '\\n\\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}{{- m.content | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant\\n\\n' }}
{%- endif %}
"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for m in turns -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('turns must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if role == 'model' -%}
        {%- generation -%}{{ m['content'] | trim }}{{ '<end_of_turn>\\n' }}{%- endgeneration -%}
    {%- else -%}
        {{ m['content'] | trim }}{{ '<end_of_turn>\\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
MISTRAL = """\
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{{- bos_token }}
{%- for m in turns %}
    {%- if m.role == 'user' %}
        {{- '[INST] ' + (system + '\\n\\n' if system and loop.last else '') + m.content }}
        {{- ' [/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' + m.content | trim + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- m.content or '' }}
            {%- for call in m.tool_calls or [] %}
                {%- set call = call.function or call %}
                {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
                {{- call.arguments | tojson + '}\\n</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEMPLATES = {
    "chatml": ("qwen", CHATML),
    "llama3": ("llama3", LLAMA3),
    "gemma": ("gemma", GEMMA),
    "mistral": ("mistral", MISTRAL),
    "tools": ("qwen", TOOLS),
}


def turn(role: str, content, **more) -> dict:
    return {"role": role, "content": content, **more}


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "naïve"}}}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
ONE = [turn("user", "The quick fox?"), turn("assistant", "It isn't lazy.")]
CONVERSATIONS = [
    {"messages": ONE},
    {
        "messages": [
            turn("system", "Be naïve, 中文。"),
            *ONE,
            turn("user", "  And the \U0001f469\u200d\U0001f680 dogs?\n\n"),
            turn("assistant", "\n 3.14 \U0001f600 สวัสดี\n\n    return 12345"),
        ]
    },
    {"messages": [turn("system", "\n"), *ONE, *ONE, *ONE]},
]
TOOL_CONVERSATION = {
    "tools": [ADD],
    "messages": [
        turn("user", "Add."),
        turn("assistant", "", tool_calls=[CALL, CALL]),
        turn("tool", "2", tool_call_id="1"),
        turn("tool", "3", tool_call_id="2"),
        turn("assistant", "It is 2."),
    ],
}


def without_marks(template: str) -> str:
    """The template as most are published."""
    other = lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}"
    return re.sub(r"\{%(-?) *(end)?generation *(-?)%\}", other, template)
