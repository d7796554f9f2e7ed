"""Words and sentence frames of the demo's clinic, in English, Korean and Japanese.

A placeholder `{a:를}` in a Korean frame takes the particle that fits the end of the word; see `clinic.py`.
"""

from __future__ import annotations

LANGUAGES = ("en", "ko", "ja")

SYMPTOMS: dict[str, list[tuple[str, str, str]]] = {
    "cardiology": [
        ("chest pain", "가슴 통증", "胸の痛み"),
        ("palpitations", "두근거림", "動悸"),
        ("swollen ankles", "발목 부종", "足首のむくみ"),
        ("breathlessness on stairs", "계단에서의 호흡 곤란", "階段での息切れ"),
    ],
    "dermatology": [
        ("itchy rash", "가려운 발진", "かゆい発疹"),
        ("hives", "두드러기", "じんましん"),
        ("dry skin", "피부 건조", "皮膚の乾燥"),
        ("new mole", "새로 생긴 점", "新しいほくろ"),
    ],
    "neurology": [
        ("headache", "두통", "頭痛"),
        ("dizziness", "어지럼증", "めまい"),
        ("numb fingers", "손가락 저림", "指のしびれ"),
        ("trembling hands", "손 떨림", "手の震え"),
    ],
    "orthopedics": [
        ("knee pain", "무릎 통증", "膝の痛み"),
        ("back pain", "허리 통증", "腰の痛み"),
        ("stiff shoulder", "어깨 결림", "肩こり"),
        ("sprained wrist", "손목 염좌", "手首の捻挫"),
    ],
    "gastroenterology": [
        ("heartburn", "속쓰림", "胸やけ"),
        ("stomach cramps", "위경련", "胃けいれん"),
        ("bloating", "복부 팽만", "お腹の張り"),
        ("diarrhea", "설사", "下痢"),
    ],
    "ophthalmology": [
        ("blurred vision", "흐린 시야", "目のかすみ"),
        ("red eyes", "눈 충혈", "目の充血"),
        ("dry eyes", "안구 건조", "目の乾き"),
        ("double vision", "복시", "複視"),
    ],
}
"""Department: its complaints, each in the languages of LANGUAGES."""

PEOPLE = (("woman", "man"), ("여성", "남성"), ("女性", "男性"))
PERSON = ("{age}-year-old {person}", "{age}세 {person}", "{age}歳{person}")
WHEN = (
    ("yesterday", "last week", "Monday", "this morning", "last month", "the weekend"),
    ("어제", "지난주", "월요일", "오늘 아침", "지난달", "주말"),
    ("昨日", "先週", "月曜日", "今朝", "先月", "週末"),
)
PAIR = (("former", "latter"), ("전자", "후자"), ("前者", "後者"))

TRIAGE: dict[str, tuple[list[str], list[str], list[str]]] = {
    "keyword": (
        ["{who} reports {a} since {when}.", "{who} comes with {a} since {when}.", "Since {when} {a}, {who}."],
        ["{who}, {when}부터 {a:를} 호소함.", "{who}, {a:로} 내원, {when} 시작."],
        ["{who}、{when}から{a}を訴える。", "{who}、{a}で来院、{when}から。"],
    ),
    "negated": (
        ["{who}: no {a}, but {b} since {when}.", "{who} has had {b} since {when} and no {a}."],
        ["{who}, {a:는} 없으나 {when}부터 {b:를} 호소함.", "{who}, {when}부터 {b} 있음, {a:는} 없음."],
        ["{who}、{a}はないが、{when}から{b}を訴える。", "{who}、{when}から{b}あり、{a}はなし。"],
    ),
    "corrected": (
        [
            "{who}, booked for {a}; on asking it is {b} since {when}.",
            "{who} is here for {b} since {when}, not for {a} as booked.",
        ],
        [
            "{who}, {a:로} 예약했으나 실제로는 {when}부터 {b:를} 호소함.",
            "{who}, {when}부터 {b:로} 내원, 예약된 {a:는} 아님.",
        ],
        ["{who}、{a}で予約したが、実際は{when}から{b}を訴える。", "{who}、{when}から{b}で来院、予約の{a}ではない。"],
    ),
    "former_latter": (
        ["{who} has had {a} and {b} since {when}; only the {which} is new."],
        ["{who}, {when}부터 {a:와} {b:를} 호소, 새로 생긴 것은 {which}뿐임."],
        ["{who}、{when}から{a}と{b}を訴え、新しいのは{which}のみ。"],
    ),
}
"""Frames by kind of difficulty, then language. `keyword`: the only complaint decides. `negated`, `corrected`: the other
complaint must be ignored. `former_latter`: a word at the end refers to one of the two."""

DRUGS = (
    [
        "aspirin",
        "ibuprofen",
        "metformin",
        "amlodipine",
        "omeprazole",
        "cetirizine",
        "atorvastatin",
        "amoxicillin",
        "prednisolone",
    ],
    [
        "아스피린",
        "이부프로펜",
        "메트포르민",
        "암로디핀",
        "오메프라졸",
        "세티리진",
        "아토르바스타틴",
        "아목시실린",
        "프레드니솔론",
    ],
    [
        "アスピリン",
        "イブプロフェン",
        "メトホルミン",
        "アムロジピン",
        "オメプラゾール",
        "セチリジン",
        "アトルバスタチン",
        "アモキシシリン",
        "プレドニゾロン",
    ],
)
RARE = (
    (
        ["zel", "vor", "tan", "mib", "lux", "dar", "fen", "quo"],
        ["a", "i", "o", "e"],
        ["mol", "stin", "prazin", "dipin", "cillin", "lone"],
    ),
    (
        ["젤", "보르", "탄", "미브", "룩스", "다르", "펜", "코"],
        ["아", "이", "오", "에"],
        ["몰", "스틴", "프라진", "디핀", "실린", "론"],
    ),
    (
        ["ゼル", "ボル", "タン", "ミブ", "ルクス", "ダル", "フェン", "クオ"],
        ["ア", "イ", "オ", "エ"],
        ["モール", "スチン", "プラジン", "ジピン", "シリン", "ロン"],
    ),
)
"""Parts of made-up drug names. A quarter of the combinations occurs in validation and test sets only, so that they can
only be copied from the text."""

DOSES = (5, 10, 20, 25, 40, 50, 75, 100, 150, 200, 250, 500)
SPANS = (("{n} days", "{n} weeks", "{n} months"), ("{n}일", "{n}주", "{n}개월"), ("{n}日間", "{n}週間", "{n}か月"))

NOTES: dict[str, tuple[list[str], list[str], list[str]]] = {
    "plain": (
        ["{who} takes {drug} {dose} for {symptom}.", "For {symptom} {who} is given {drug} {dose}."],
        ["{who}, {symptom:로} {drug} {dose} 복용 중.", "{who}, {symptom} 때문에 {drug} {dose} 처방함."],
        ["{who}、{symptom}のため{drug} {dose}を服用中。", "{who}、{symptom}に対し{drug} {dose}を処方。"],
    ),
    "duration": (
        [
            "{who} has had {symptom} for {span}; {drug} {dose} given.",
            "{who}: {drug} {dose} for {span} against {symptom}.",
        ],
        ["{who}, {span} 동안 {symptom}, {drug} {dose} 처방함.", "{who}, {symptom:로} {drug} {dose} {span} 동안 복용."],
        ["{who}、{symptom}が{span}続き、{drug} {dose}を処方。", "{who}、{symptom}に{drug} {dose}を{span}服用。"],
    ),
    "changed": (
        [
            "{who} stopped {drug} {dose} and now takes {drug2} {dose2}.",
            "{who}: {drug2} {dose2} now, {drug} {dose} stopped.",
        ],
        [
            "{who}, {drug} {dose} 중단, 현재 {drug2} {dose2} 복용.",
            "{who}, 현재 {drug2} {dose2} 복용, {drug} {dose} 중단.",
        ],
        [
            "{who}、{drug} {dose}を中止し、現在は{drug2} {dose2}を服用。",
            "{who}、現在は{drug2} {dose2}を服用、{drug} {dose}は中止。",
        ],
    ),
    "two": (
        ["{who} takes {drug} {dose} and {drug2} {dose2} for {symptom}."],
        ["{who}, {symptom:로} {drug} {dose} 및 {drug2} {dose2} 복용 중."],
        ["{who}、{symptom}のため{drug} {dose}と{drug2} {dose2}を服用中。"],
    ),
}
"""Medication notes by kind. In `changed` the word beside a drug, not its position, says that it is taken now."""

ROUTINE = (
    ["{who} is here for a routine check, nothing to report.", "{who} comes for a certificate only."],
    ["{who}, 정기 검진으로 내원, 특이 사항 없음.", "{who}, 진단서 발급만을 위해 내원함."],
    ["{who}、定期健診で来院、特記事項なし。", "{who}、診断書のみのため来院。"],
)

QUESTIONS: dict[str, tuple[str, str, str]] = {
    "drug": ("Which drug is taken now?", "현재 복용하는 약은 무엇입니까?", "現在服用している薬は何ですか。"),
    "dose": ("What is the dose of {drug}?", "{drug}의 용량은 얼마입니까?", "{drug}の用量はいくつですか。"),
    "span": ("For how long?", "기간은 얼마입니까?", "期間はどのくらいですか。"),
}
