"""Names that classes, files and folders may have, and that break careless writers."""

AWFUL_NAMES = (
    "$5_$10", "$", "a\\$b", "{\\bf x}", "\\", "<script>alert(1)</script>", "a&b &amp; c", "]]>-->", "two\nlines",
    "carriage\rreturn", "\r\n", "tab\there", "pi|pe", "back`tick ``", "[link](javascript:x)", "**bold** _it_ ~~x~~",
    "{{ 7 * 7 }}{% raw %}", "%s %d %(x)s", "it's \"quoted\"", "a, b", "a;b", "emoji \U0001f415\u200d\U0001f9ba",
    "\u65e5\u672c\u8a9e", "\u05e9\u05dc\u05d5\u05dd", "\u202egnp.exe", "\x1b[31mred\x07", "nul\x00nul", "caf\udce9",
    "accuracy", "macro avg", "weighted avg", "micro avg", "x" * 300, "x" * 299 + "y", " ", "  \u3000 ", " padded ",
    "nan", "None", "null", "true", "no", "~", "- item", "# title", "---", "1e5", "007", "7", "-0", "file", "label",
    "prediction", "start_s", "probability_file", "LABEL_0", "=1+1", "+1", "@SUM(A1)", "\u2028line",
    "\u0301combining", "../up", "C:\\x",
)  # fmt: skip
